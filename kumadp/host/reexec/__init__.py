"""Re-execution: the handover by execve(2), inherited sockets, and answers while the new program starts."""

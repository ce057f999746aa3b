"""What changes if kumadp takes the place of a kuma-dp of this host, and what installs it beside that one."""

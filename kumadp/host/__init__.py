"""The machine that kumadp runs on: files, folders, processes, limits, signals; logs, network and re-execution below."""

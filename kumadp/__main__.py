"""``python -m kumadp``."""

from kumadp.cli.main import main

if __name__ == "__main__":
    main()

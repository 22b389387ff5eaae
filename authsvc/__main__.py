"""`python -m authsvc`."""

from authsvc.cli.main import main

if __name__ == "__main__":
    main()

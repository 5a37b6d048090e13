"""`python -m avarnet`."""

from avarnet import main

main()

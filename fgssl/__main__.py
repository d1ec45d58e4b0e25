"""python -m fgssl"""

from fgssl.cli import main

main()

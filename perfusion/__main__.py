from perfusion.cli import main

main()

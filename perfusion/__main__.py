from perfusion.commands.cli import main

main()

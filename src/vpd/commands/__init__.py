"""What the subcommands of `vpd` do, one verb a file."""

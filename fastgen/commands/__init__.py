"""What `fastgen COMMAND` and the recipes of one folder or file do, a module each."""

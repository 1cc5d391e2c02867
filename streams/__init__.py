"""How streams are processed: the Faust app, its chunk transport and agents."""

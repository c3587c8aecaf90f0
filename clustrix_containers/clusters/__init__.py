"""Where jobs run. One module each; clusters do not import each other."""

"""The public RealWorld ("Conduit") API under /api: HTTP in and out, over the modules' interfaces."""

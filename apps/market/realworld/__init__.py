"""The public RealWorld ("Conduit") API under /api: HTTP in and out, and nothing but the modules' interfaces."""

"""The shop window: server-rendered pages over the modules' interfaces."""

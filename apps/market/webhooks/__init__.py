"""Sellers' own programs are told what happens in their shops."""

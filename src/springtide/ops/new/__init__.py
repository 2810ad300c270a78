"""Write a small working application to start from."""

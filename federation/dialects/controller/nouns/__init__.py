"""What is listed, counted and got one by one: per noun its rows, its shape, its filters."""

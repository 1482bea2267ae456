"""How a round behaves, and what happens when something dies: each rule of the design is a named test."""

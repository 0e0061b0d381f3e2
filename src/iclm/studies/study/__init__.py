"""The study: methods × data × seeds as a grid of jobs, each done once, with honest choices and statistics."""

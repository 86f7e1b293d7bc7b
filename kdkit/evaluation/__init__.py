"""Evaluation: the accuracy of students and of teachers."""

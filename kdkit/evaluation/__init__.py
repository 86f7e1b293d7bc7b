"""Evaluation: the accuracy of students and of teachers.

Where to look:
    student.py      `kdkit evaluate`: top-1, top-5 and speed of a student
    teacher.py      `kdkit teachers check`: top-1 and class order of a teacher
    config.py       their configuration
"""

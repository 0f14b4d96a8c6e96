"""Trainings side by side: the same starts, the same budget, several seeds (`elpo compare`)."""

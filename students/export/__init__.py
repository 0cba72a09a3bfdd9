"""Write a student in the format of a runtime, and compare what that runtime makes of it with the student."""

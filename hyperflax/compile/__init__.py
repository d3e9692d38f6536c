"""What a program will need on TPUs, found by compiling it for them on a machine that has none."""

"""ELPO inside other trainers. Each module needs the extra it is named after."""

"""The agent debugger: which step doomed this trajectory?"""

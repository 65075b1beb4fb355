"""degradation"""

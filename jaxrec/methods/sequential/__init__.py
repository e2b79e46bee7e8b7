"""Sequential recommenders: which item comes next?"""

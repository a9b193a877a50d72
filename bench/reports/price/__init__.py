"""What does the worst thief do to a claim, by what he pays and by what he changes?"""

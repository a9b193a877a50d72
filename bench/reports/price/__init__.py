"""What does the worst thief do to a claim: by what he pays, by what he changes, by how it looks?"""

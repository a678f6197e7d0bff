"""noscratch: which published claims about long-sequence architectures hold, at what cost, and how sure are we?"""

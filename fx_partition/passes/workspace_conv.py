from .workspace_call import *
CONV_RULES={}

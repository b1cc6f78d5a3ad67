"""Pictures and their captions as a data set: brought into other programs' forms, and looked over for mistakes."""

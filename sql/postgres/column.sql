    :"column" text

-- A column that the topic template, a header or the partition is made of.
ALTER TABLE :"schema".:"table" ADD COLUMN IF NOT EXISTS :"column" text;

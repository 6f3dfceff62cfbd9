variable "prefix" {
  description = "Begins the name of every resource."
  type        = string
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
}

variable "prefix" {
  description = "Begins the name of every resource."
  type        = string
}

variable "project" {
  description = "Value of the tag Project, by which the bill is counted."
  type        = string
}

variable "region" {
  description = "Region of the metrics."
  type        = string
}

variable "mail" {
  description = "Who is told."
  type        = string

  validation {
    condition     = can(regex("^[^@ ]+@[^@ ]+\\.[^@ ]+$", var.mail))
    error_message = "mail is \"${var.mail}\", expected an address."
  }
}

variable "budget_usd" {
  description = "Dollars a month; half, nine tenths and a forecast of all of it are told."
  type        = number

  validation {
    condition     = var.budget_usd > 0
    error_message = "budget_usd is ${var.budget_usd}, expected more than 0."
  }
}

variable "service" {
  description = "Names of load balancer and replicas in metrics, from the service module; null while nothing is served."
  type        = object({ load_balancer = string, target_group = string })
  default     = null
}

variable "dask_cluster" {
  description = "Name of the Dask cluster; from the dask module."
  type        = string
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
}

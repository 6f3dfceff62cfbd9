variable "name" {
  description = "Name of the deployment; it begins the name of every resource."
  type        = string
  default     = "bigearth"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name is \"${var.name}\", expected 3 to 20 lower-case letters, digits and hyphens, beginning with a letter and not ending with a hyphen."
  }
}

variable "environment" {
  description = "Which of several deployments of that name, e.g. dev or prod."
  type        = string
  default     = "dev"

  validation {
    condition     = can(regex("^[a-z0-9]{2,8}$", var.environment))
    error_message = "environment is \"${var.environment}\", expected 2 to 8 lower-case letters and digits."
  }
}

variable "account_id" {
  description = "AWS account, 12 digits."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id is \"${var.account_id}\", expected 12 digits."
  }
}

variable "tags" {
  description = "More tags for every resource."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key in keys(var.tags) : !contains(["Project", "Environment", "ManagedBy"], key)])
    error_message = "the tags Project, Environment and ManagedBy are set by this module; choose other keys."
  }
}

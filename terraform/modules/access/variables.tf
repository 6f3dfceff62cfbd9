variable "prefix" {
  description = "Begins the name of every resource."
  type        = string
}

variable "partition" {
  description = "aws, aws-cn or aws-us-gov."
  type        = string
  default     = "aws"
}

variable "policies" {
  description = "Role (reader, publisher, trainer) to its policy (JSON); from the policies module."
  type        = map(string)
}

variable "service_trust" {
  description = "AWS service to trust policy (JSON); from the policies module."
  type        = map(string)
}

variable "github_repository" {
  description = "owner/name of the repository whose workflows may publish, or null."
  type        = string
  default     = null
}

variable "create_github_provider" {
  description = "Whether to make the account's OIDC provider for GitHub; an account has one at most."
  type        = bool
  default     = true
}

variable "github_trust" {
  description = "Trust policy (JSON) of the workflows' role, or null; from the policies module."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
}

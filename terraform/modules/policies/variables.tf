variable "bucket" {
  description = "Name of the bucket that holds cubes and runs."
  type        = string
}

variable "partition" {
  description = "aws, aws-cn or aws-us-gov."
  type        = string
  default     = "aws"

  validation {
    condition     = contains(["aws", "aws-cn", "aws-us-gov"], var.partition)
    error_message = "partition is \"${var.partition}\"; choose one of: aws, aws-cn, aws-us-gov."
  }
}

variable "cube_prefixes" {
  description = "Prefixes of the cubes, e.g. bigearthnet-v2; each is a cube URL below the bucket."
  type        = list(string)

  validation {
    condition     = length(var.cube_prefixes) > 0
    error_message = "cube_prefixes is empty; name at least one cube, e.g. \"bigearthnet-v2\"."
  }

  validation {
    condition     = alltrue([for p in var.cube_prefixes : can(regex("^[A-Za-z0-9][A-Za-z0-9._/-]*[A-Za-z0-9]$", p))])
    error_message = "a cube prefix holds something other than letters, digits and . _ / -, or begins or ends with a slash; a wildcard would open more than a cube."
  }
}

variable "runs_prefix" {
  description = "Prefix of training runs: checkpoints, metrics, exported encoders."
  type        = string
  default     = "runs"

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9._-]*$", var.runs_prefix)) && !contains(var.cube_prefixes, var.runs_prefix)
    error_message = "runs_prefix is \"${var.runs_prefix}\", expected letters, digits and . _ -, and no cube's prefix."
  }
}

variable "reading" {
  description = "Who may read cubes besides the roles of this account: nobody (private), anyone (public), or accounts that pay for what they read (requester-pays)."
  type        = string
  default     = "private"

  validation {
    condition     = contains(["private", "public", "requester-pays"], var.reading)
    error_message = "reading is \"${var.reading}\"; choose one of: private, public, requester-pays."
  }
}

variable "kms_key_arn" {
  description = "Key of the bucket, or null where S3 manages it."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || var.reading == "private"
    error_message = "a bucket with a key of its own cannot be read by others than this account; use kms_key_arn = null, or reading = \"private\"."
  }
}

variable "github_repository" {
  description = "owner/name of the repository whose workflows may publish, or null for none."
  type        = string
  default     = null

  validation {
    condition     = var.github_repository == null || can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "github_repository is \"${coalesce(var.github_repository, "null")}\", expected owner/name without wildcards."
  }
}

variable "github_ref" {
  description = "Branch or tag whose workflows may publish."
  type        = string
  default     = "refs/heads/main"

  validation {
    condition     = can(regex("^refs/(heads|tags)/[A-Za-z0-9._/-]+$", var.github_ref))
    error_message = "github_ref is \"${var.github_ref}\", expected refs/heads/BRANCH or refs/tags/TAG without wildcards."
  }
}

variable "github_provider_arn" {
  description = "ARN of the account's OIDC provider for GitHub; needed with github_repository."
  type        = string
  default     = null
}

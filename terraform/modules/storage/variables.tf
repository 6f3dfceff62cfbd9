variable "bucket" {
  description = "Name of the bucket of the cubes; from the naming module."
  type        = string
}

variable "log_bucket" {
  description = "Name of the bucket of access logs; from the naming module."
  type        = string
}

variable "bucket_policy" {
  description = "Policy of the bucket (JSON); from the policies module."
  type        = string
}

variable "reading" {
  description = "private, public or requester-pays; as given to the policies module."
  type        = string
}

variable "kms_key_arn" {
  description = "Key of the bucket, or null where S3 manages it."
  type        = string
  default     = null
}

variable "archive_prefixes" {
  description = "Prefixes of published tars kept beside the cubes; they move to cheap storage after 30 days."
  type        = set(string)
  default     = []
}

variable "keep_old_versions_days" {
  description = "How long an overwritten or removed object can be brought back."
  type        = number
  default     = 30
}

variable "cors_origins" {
  description = "Web pages that may read the cubes in a browser."
  type        = list(string)
  default     = ["*"]
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
}

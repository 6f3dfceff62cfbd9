variable "name" {
  description = "Name of the deployment."
  type        = string
  default     = "bigearth"
}

variable "environment" {
  description = "Which of several deployments of that name."
  type        = string
  default     = "dev"
}

variable "region" {
  description = "Region of bucket and compute."
  type        = string
  default     = "eu-central-1"
}

variable "availability_zones" {
  description = "Two or more zones of the region; named, so that a new zone moves nothing."
  type        = list(string)
  default     = ["eu-central-1a", "eu-central-1b"]
}

variable "cube_prefixes" {
  description = "Cubes below the bucket."
  type        = list(string)
  default     = ["bigearthnet-v2"]
}

variable "reading" {
  description = "private, public or requester-pays."
  type        = string
  default     = "private"
}

variable "kms_key_arn" {
  description = "Key of the bucket, or null where S3 manages it."
  type        = string
  default     = null
}

variable "serve" {
  description = "Whether the service runs: replicas stop where a cube is not there yet."
  type        = bool
  default     = false
}

variable "n_items" {
  description = "Items of all cubes, for the memory of a replica."
  type        = number
  default     = 549488
}

variable "certificate_arn" {
  description = "Certificate of the service's domain, in ACM; needed to serve."
  type        = string
  default     = null

  validation {
    condition     = !var.serve || var.certificate_arn != null
    error_message = "serve needs certificate_arn, the certificate of the service's domain in ACM."
  }
}

variable "mail" {
  description = "Who is told of alarms and of the bill."
  type        = string
}

variable "budget_usd" {
  description = "Dollars a month."
  type        = number
  default     = 300
}

variable "image_tag" {
  description = "Tag of the three images."
  type        = string
  default     = "0.1.0"
}

variable "worker_size" {
  description = "small, medium or large."
  type        = string
  default     = "medium"
}

variable "n_workers" {
  description = "Dask workers; 0 while there is nothing to ingest or load."
  type        = number
  default     = 0
}

variable "trainer" {
  description = "Instance type that trains."
  type        = string
  default     = "g6.4xlarge"
}

variable "create_github_provider" {
  description = "false where the account has an OIDC provider for GitHub."
  type        = bool
  default     = true
}

variable "github_repository" {
  description = "owner/name of the repository whose workflows may publish, or null."
  type        = string
  default     = null
}

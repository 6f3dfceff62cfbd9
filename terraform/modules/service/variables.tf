variable "prefix" {
  description = "Begins the name of every resource."
  type        = string

  validation {
    condition     = length(var.prefix) <= 24
    error_message = "prefix \"${var.prefix}\" has ${length(var.prefix)} characters, expected at most 24: a load balancer's name has 32."
  }
}

variable "region" {
  description = "Region of the bucket."
  type        = string
}

variable "cube_urls" {
  description = "Cubes to serve, s3://…."
  type        = list(string)

  validation {
    condition     = length(var.cube_urls) > 0 && alltrue([for url in var.cube_urls : startswith(url, "s3://")])
    error_message = "cube_urls is empty or names something other than s3:// URLs."
  }
}

variable "image" {
  description = "Image of the service, by digest or tag."
  type        = string
}

variable "replica" {
  description = "CPU units and MiB of a replica; from the sizing module."
  type        = object({ cpu = number, memory_mib = number })
}

variable "replicas" {
  description = "Fewest and most replicas."
  type        = object({ min = number, max = number })
  default     = { min = 2, max = 8 }

  validation {
    condition     = var.replicas.min >= 1 && var.replicas.max >= var.replicas.min
    error_message = "replicas are ${var.replicas.min} to ${var.replicas.max}, expected at least 1 and a maximum no smaller."
  }
}

variable "protected" {
  description = "Whether the load balancer refuses to be destroyed."
  type        = bool
  default     = true
}

variable "certificate_arn" {
  description = "Certificate of the domain, in ACM."
  type        = string
}

variable "task_role_arn" {
  description = "Role of the reader; from the access module."
  type        = string
}

variable "execution_role_arn" {
  description = "What the platform takes to start a task; from the access module."
  type        = string
}

variable "vpc_id" {
  description = "The network; from the network module."
  type        = string
}

variable "cidr" {
  description = "Its addresses; from the network module."
  type        = string
}

variable "private_subnet_ids" {
  description = "Where replicas run; from the network module."
  type        = list(string)
}

variable "public_subnet_ids" {
  description = "Where the load balancer stands; from the network module."
  type        = list(string)
}

variable "s3_prefix_list_id" {
  description = "Addresses of S3; from the network module."
  type        = string
}

variable "log_bucket" {
  description = "Bucket of access logs; from the storage module."
  type        = string
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
}

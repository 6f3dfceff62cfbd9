variable "prefix" {
  description = "Begins the name of every resource."
  type        = string
}

variable "region" {
  description = "Region of the bucket."
  type        = string
}

variable "image" {
  description = "Image that trains, by digest or tag."
  type        = string
}

variable "cube_url" {
  description = "Cube of a job that names none, s3://…."
  type        = string
}

variable "runs_url" {
  description = "Where runs go, s3://…."
  type        = string
}

variable "trainer" {
  description = "Instance type, vCPUs, MiB and GPUs of a job; from the sizing module."
  type        = object({ instance_type = string, vcpus = number, memory_mib = number, gpus = number })
}

variable "max_jobs" {
  description = "Jobs that run at once, at most."
  type        = number
  default     = 1

  validation {
    condition     = var.max_jobs >= 1 && floor(var.max_jobs) == var.max_jobs
    error_message = "max_jobs is ${var.max_jobs}, expected a whole number of at least 1."
  }
}

variable "max_hours" {
  description = "Hours after which a job is stopped; its checkpoints stay."
  type        = number
  default     = 12

  validation {
    condition     = var.max_hours >= 1 && var.max_hours <= 336
    error_message = "max_hours is ${var.max_hours}, expected 1 to 336."
  }
}

variable "spot" {
  description = "Whether machines are spot capacity."
  type        = bool
  default     = true
}

variable "task_role_arn" {
  description = "Role of the trainer; from the access module."
  type        = string
}

variable "execution_role_arn" {
  description = "What the platform takes to start a task; from the access module."
  type        = string
}

variable "instance_profile_arn" {
  description = "Profile of the machines; from the access module."
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
  description = "Where jobs run; from the network module."
  type        = list(string)
}

variable "s3_prefix_list_id" {
  description = "Addresses of S3; from the network module."
  type        = string
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
}

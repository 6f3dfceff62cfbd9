variable "prefix" {
  description = "Begins the name of every resource."
  type        = string
}

variable "region" {
  description = "Region of the bucket."
  type        = string
}

variable "image" {
  description = "Image of the workers and the scheduler, by digest or tag; both must be the same."
  type        = string
}

variable "worker" {
  description = "CPU units, MiB and threads of a worker; from the sizing module."
  type        = object({ cpu = number, memory_mib = number, threads = number })
}

variable "ingest" {
  description = "CPU units and MiB of an ingest; from the sizing module."
  type        = object({ cpu = number, memory_mib = number })
}

variable "n_workers" {
  description = "Workers; 0 stops the cluster's cost but for the scheduler."
  type        = number
}

variable "spot" {
  description = "Whether workers run on spot capacity: about a third of the price, taken away at two minutes' notice."
  type        = bool
  default     = true
}

variable "reader_role_arn" {
  description = "Role of the scheduler; from the access module."
  type        = string
}

variable "publisher_role_arn" {
  description = "Role of the workers, which write shards; from the access module."
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
  description = "Where scheduler and workers run; from the network module."
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

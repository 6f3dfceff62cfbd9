variable "worker_size" {
  description = "Size of a Dask worker: small, medium or large (1, 2 or 4 vCPU, 4 GiB each)."
  type        = string
  default     = "medium"

  validation {
    condition     = contains(["small", "medium", "large"], var.worker_size)
    error_message = "worker_size is \"${var.worker_size}\"; choose one of: small, medium, large."
  }
}

variable "n_workers" {
  description = "Dask workers."
  type        = number
  default     = 4

  validation {
    condition     = var.n_workers >= 1 && var.n_workers <= 200 && floor(var.n_workers) == var.n_workers
    error_message = "n_workers is ${var.n_workers}, expected a whole number from 1 to 200."
  }
}

variable "n_items" {
  description = "Items of all cubes that the service answers for."
  type        = number
  default     = 549488

  validation {
    condition     = var.n_items >= 1 && var.n_items <= 50000000
    error_message = "n_items is ${var.n_items}, expected 1 to 50,000,000; more do not fit into one replica, split the cubes over several services."
  }
}

variable "trainer" {
  description = "EC2 instance type that trains, with one GPU."
  type        = string
  default     = "g6.4xlarge"

  validation {
    condition     = contains(["g5.2xlarge", "g6.4xlarge", "g6e.4xlarge", "p5.4xlarge"], var.trainer)
    error_message = "trainer is \"${var.trainer}\"; choose one of: g5.2xlarge, g6.4xlarge, g6e.4xlarge, p5.4xlarge."
  }
}

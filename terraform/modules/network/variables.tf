variable "prefix" {
  description = "Begins the name of every resource."
  type        = string
}

variable "region" {
  description = "Region of the bucket; compute elsewhere would pay for every byte."
  type        = string
}

variable "availability_zones" {
  description = "Two to eight zones of the region."
  type        = list(string)

  validation {
    condition     = length(var.availability_zones) >= 2 && length(var.availability_zones) <= 8
    error_message = "${length(var.availability_zones)} availability zones, expected 2 to 8: a load balancer needs two."
  }
}

variable "cidr" {
  description = "Addresses of the network, a /16 to /24."
  type        = string
  default     = "10.64.0.0/16"

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && can(regex("/(1[6-9]|2[0-4])$", var.cidr))
    error_message = "cidr is \"${var.cidr}\", expected a /16 to /24 such as 10.64.0.0/16."
  }
}

variable "flow_log_trust" {
  description = "Trust policy (JSON) for flow logs; from the policies module."
  type        = string
}

variable "tags" {
  description = "Tags of every resource."
  type        = map(string)
}

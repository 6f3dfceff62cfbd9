variables {
  account_id = "123456789012"
}

run "names_begin_with_the_deployment" {
  command = plan

  variables {
    name        = "reben"
    environment = "prod"
    tags        = { Owner = "eo" }
  }

  assert {
    condition     = output.prefix == "reben-prod"
    error_message = "prefix is ${output.prefix}"
  }

  assert {
    condition     = output.bucket == "reben-prod-123456789012"
    error_message = "bucket is ${output.bucket}"
  }

  assert {
    condition     = output.tags == tomap({ Owner = "eo", Project = "reben", Environment = "prod", ManagedBy = "terraform" })
    error_message = "a tag is missing or wrong"
  }
}

run "the_longest_name_fits_into_a_bucket_name" {
  command = plan

  variables {
    name        = "abcdefghijklmnopqrst"
    environment = "12345678"
  }

  assert {
    condition     = length(output.log_bucket) <= 63
    error_message = "S3 takes at most 63 characters, this has ${length(output.log_bucket)}"
  }
}

run "upper_case_is_refused" {
  command         = plan
  expect_failures = [var.name]

  variables {
    name = "BigEarth"
  }
}

run "a_hyphen_at_the_end_is_refused" {
  command         = plan
  expect_failures = [var.name]

  variables {
    name = "bigearth-"
  }
}

run "an_environment_with_a_hyphen_is_refused" {
  command         = plan
  expect_failures = [var.environment]

  variables {
    environment = "a-b"
  }
}

run "an_account_that_is_no_number_is_refused" {
  command         = plan
  expect_failures = [var.account_id]

  variables {
    account_id = "my-account"
  }
}

run "our_own_tags_cannot_be_overridden" {
  command         = plan
  expect_failures = [var.tags]

  variables {
    tags = { Project = "other" }
  }
}

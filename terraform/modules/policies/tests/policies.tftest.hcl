variables {
  bucket        = "cubes"
  cube_prefixes = ["bigearthnet-v1", "bigearthnet-v2"]
}

run "a_reader_cannot_write" {
  command = plan

  assert {
    condition = alltrue(flatten([
      for s in jsondecode(output.roles.reader).Statement : [for a in flatten([s.Action]) : can(regex("^s3:(Get|List)", a))]
    ]))
    error_message = "the reader may do more than get and list"
  }
}

run "a_reader_sees_cubes_and_neither_runs_nor_archives" {
  command = plan

  assert {
    condition = flatten([for s in jsondecode(output.roles.reader).Statement : s.Resource if flatten([s.Action]) == ["s3:GetObject"]]) == [
      "arn:aws:s3:::cubes/bigearthnet-v1/*",
      "arn:aws:s3:::cubes/bigearthnet-v2/*",
    ]
    error_message = "what answers the public may read more, or less, than cubes"
  }
}

run "a_trainer_keeps_its_runs" {
  command = plan

  assert {
    condition = flatten([
      for s in jsondecode(output.roles.trainer).Statement : s.Resource
      if length(setsubtract(["s3:PutObject", "s3:DeleteObject"], flatten([s.Action]))) == 0
    ]) == ["arn:aws:s3:::cubes/runs/*"]
    error_message = "a run cannot be saved, or its older checkpoints not removed"
  }
}

run "who_writes_may_use_the_key_of_the_bucket_and_who_reads_may_only_decrypt" {
  command = plan

  variables {
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
  }

  assert {
    condition = {
      for role in ["reader", "publisher", "trainer"] : role => flatten([
        for s in jsondecode(output.roles[role]).Statement : s.Action if s.Resource == var.kms_key_arn
      ])
      } == {
      reader    = ["kms:Decrypt"]
      publisher = ["kms:Decrypt", "kms:GenerateDataKey"]
      trainer   = ["kms:Decrypt", "kms:GenerateDataKey"]
    }
    error_message = "a role may do more, or less, with the key than it needs"
  }
}

run "only_plain_http_is_refused" {
  command = plan

  assert {
    condition = [for s in jsondecode(output.bucket_policy).Statement : s.Condition if s.Effect == "Deny"] == [
      { Bool = { "aws:SecureTransport" = "false" } },
    ]
    error_message = "the bucket refuses something other than requests without TLS"
  }
}

run "nobody_may_remove_what_is_published" {
  command = plan

  assert {
    condition = alltrue(flatten([
      for role in ["reader", "publisher", "trainer"] : [
        for s in jsondecode(output.roles[role]).Statement : [
          for r in flatten([s.Resource]) : can(regex("/ingest/\\*$|/runs/\\*$", r))
        ] if contains(flatten([s.Action]), "s3:DeleteObject")
      ]
    ]))
    error_message = "a role may delete outside of ingest/ and runs/"
  }
}

run "no_role_has_a_wildcard_action_or_all_resources" {
  command = plan

  assert {
    condition = alltrue(flatten([
      for role in ["reader", "publisher", "trainer"] : [
        for s in jsondecode(output.roles[role]).Statement : concat(
          [for a in flatten([s.Action]) : !strcontains(a, "*")],
          [for r in flatten([s.Resource]) : r != "*"],
        )
      ]
    ]))
    error_message = "least privilege names its actions and resources"
  }
}

run "a_trainer_writes_embeddings_and_never_pixels_or_items" {
  command = plan

  assert {
    condition = alltrue(flatten([
      for s in jsondecode(output.roles.trainer).Statement : [
        for r in flatten([s.Resource]) : !strcontains(r, "/s2/") && !strcontains(r, "/items/") && !can(regex("v[12]/\\*$", r))
      ] if contains(flatten([s.Action]), "s3:PutObject")
    ]))
    error_message = "the trainer may overwrite what was ingested"
  }
}

run "a_private_bucket_names_no_reader" {
  command = plan

  assert {
    condition     = [for s in jsondecode(output.bucket_policy).Statement : s.Effect] == ["Deny"]
    error_message = "a private bucket allows somebody"
  }
}

run "anyone_reads_cubes_of_a_public_bucket_and_no_runs" {
  command = plan

  variables {
    reading = "public"
  }

  assert {
    condition = flatten([for s in jsondecode(output.bucket_policy).Statement : s.Resource if s.Effect == "Allow" && s.Action == "s3:GetObject"]) == [
      "arn:aws:s3:::cubes/bigearthnet-v1/*",
      "arn:aws:s3:::cubes/bigearthnet-v2/*",
    ]
    error_message = "a public bucket opens more, or less, than its cubes"
  }

  assert {
    condition     = alltrue([for s in jsondecode(output.bucket_policy).Statement : can(s.Condition.StringLike["s3:prefix"]) if s.Effect == "Allow" && s.Action == "s3:ListBucket"])
    error_message = "a public bucket lists more than its cubes"
  }
}

run "payers_read_cubes_and_list_nothing" {
  command = plan

  variables {
    reading = "requester-pays"
  }

  assert {
    condition     = flatten([for s in jsondecode(output.bucket_policy).Statement : s.Action if s.Effect == "Allow"]) == ["s3:GetObject"]
    error_message = "accounts that pay may do more than get"
  }
}

run "one_branch_of_one_repository_may_publish" {
  command = plan

  variables {
    github_repository   = "owner/cubes"
    github_provider_arn = "arn:aws:iam::123456789012:oidc-provider/token.actions.githubusercontent.com"
  }

  assert {
    condition     = jsondecode(output.github_trust).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:sub"] == "repo:owner/cubes:ref:refs/heads/main"
    error_message = "another repository or branch could publish"
  }

  assert {
    condition     = jsondecode(output.github_trust).Statement[0].Condition.StringEquals["token.actions.githubusercontent.com:aud"] == "sts.amazonaws.com"
    error_message = "a token that is meant for somebody else would do"
  }
}

run "no_role_for_workflows_where_none_is_asked_for" {
  command = plan

  assert {
    condition     = output.github_trust == null
    error_message = "a trust policy for nobody"
  }
}

run "a_wildcard_prefix_is_refused" {
  command         = plan
  expect_failures = [var.cube_prefixes]

  variables {
    cube_prefixes = ["*"]
  }
}

run "no_cube_is_refused" {
  command         = plan
  expect_failures = [var.cube_prefixes]

  variables {
    cube_prefixes = []
  }
}

run "runs_in_a_cube_are_refused" {
  command         = plan
  expect_failures = [var.runs_prefix]

  variables {
    runs_prefix = "bigearthnet-v2"
  }
}

run "an_unknown_way_of_reading_is_refused" {
  command         = plan
  expect_failures = [var.reading]

  variables {
    reading = "everyone"
  }
}

run "a_key_that_readers_do_not_have_is_refused" {
  command         = plan
  expect_failures = [var.kms_key_arn]

  variables {
    reading     = "public"
    kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
  }
}

run "a_wildcard_branch_is_refused" {
  command         = plan
  expect_failures = [var.github_ref]

  variables {
    github_ref = "refs/heads/*"
  }
}

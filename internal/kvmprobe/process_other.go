//go:build !linux

package kvmprobe

import "os/exec"

func diesWithUs(*exec.Cmd) {}

package lab

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/sanzoning/iscsi"
)

// params are the kernel parameters that the simulated kernel understands. Others are ignored, as a
// kernel does.
type params struct {
	PhoneHome string // rerack.phonehome=<url>
	Workload  string // rerack.workload=<name>
	Epoch     uint64 // rerack.epoch=<n>
	Initiator string // rerack.initiator=<iqn>
	Client    string // rerack.client=<name>, for a hypervisor: the only caller of its agent
	Volumes   []disk // rerack.volume.<i>=..., by rising i
}

// disk is where a volume is. Volume is its topology name and may be unknown for iSCSI.
type disk struct {
	Volume string
	ISCSI  bool
	Portal netip.AddrPort
	Target string // IQN, or the target port's WWPN
	LUN    int
	Login  iscsi.Account
}

// Limits of a command line; COMMAND_LINE_SIZE is 2048 on x86, and iPXE's own limit is higher.
const (
	maxCmdline = 16 << 10
	maxVolumes = 256
)

// parseParams reads a kernel command line.
func parseParams(cmdline string) (params, error) {
	var p params
	if len(cmdline) > maxCmdline {
		return p, fault.Newf(fault.Invalid, "kernel command line of more than %d bytes", maxCmdline)
	}
	volumes := map[int]disk{}
	for _, f := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(f, "=")
		var err error
		switch key {
		case pxe.PhoneHomeParam:
			p.PhoneHome, err = httpURL(value)
		case "rerack.workload":
			p.Workload = value
		case "rerack.epoch":
			p.Epoch, err = strconv.ParseUint(value, 10, 64)
		case "rerack.client":
			p.Client = value
		case "rerack.initiator":
			p.Initiator = value
		default:
			i, isVolume := strings.CutPrefix(key, "rerack.volume.")
			if !isVolume {
				continue
			}
			var n int
			var d disk
			if n, err = strconv.Atoi(i); err == nil {
				d, err = parseDisk(value)
				volumes[n] = d
			}
		}
		if err != nil {
			return p, &fault.Error{Kind: fault.Invalid, Where: "kernel parameter " + key, What: "read it", Evidence: fmt.Sprintf("%.80q", value), Err: err}
		}
		if len(volumes) > maxVolumes {
			return p, fault.Newf(fault.Invalid, "more than %d volumes", maxVolumes)
		}
	}
	var order []int
	for n := range volumes {
		order = append(order, n)
	}
	slices.Sort(order)
	for _, n := range order {
		p.Volumes = append(p.Volumes, volumes[n])
	}
	return p, nil
}

func httpURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fault.New(fault.Invalid, "want an http or https URL")
	}
	return s, nil
}

// parseDisk reads iscsi:<host:port>:<target iqn>:<lun> and fc:<target wwpn>:<lun>:<volume>. Names
// contain colons themselves, so it reads from both ends.
func parseDisk(s string) (disk, error) {
	var d disk
	kind, rest, _ := strings.Cut(s, ":")
	cut := strings.LastIndexByte(rest, ':')
	if cut < 0 {
		return d, fault.New(fault.Invalid, "want iscsi:<portal>:<target>:<lun> or fc:<wwpn>:<lun>:<volume>")
	}
	head, last := rest[:cut], rest[cut+1:]
	switch kind {
	case "iscsi":
		at := strings.Index(head, ":iqn.")
		if at < 0 {
			return d, fault.New(fault.Invalid, "no target name")
		}
		portal, err := netip.ParseAddrPort(head[:at])
		if err != nil {
			return d, err
		}
		lun, err := strconv.Atoi(last)
		if err != nil || lun < 0 {
			return d, fault.New(fault.Invalid, "no LUN")
		}
		return disk{ISCSI: true, Portal: portal, Target: head[at+1:], LUN: lun}, nil
	case "fc":
		at := strings.LastIndexByte(head, ':')
		if at < 0 || last == "" {
			return d, fault.New(fault.Invalid, "no LUN or no volume")
		}
		lun, err := strconv.Atoi(head[at+1:])
		if err != nil || lun < 0 {
			return d, fault.New(fault.Invalid, "no LUN")
		}
		return disk{Volume: last, Target: head[:at], LUN: lun}, nil
	}
	return d, fault.New(fault.Unsupported, "neither iscsi nor fc")
}

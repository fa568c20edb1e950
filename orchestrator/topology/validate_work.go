package topology

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// images checks that an image has the files its type needs.
func (v *validator) images() {
	for _, name := range v.order[KindImage] {
		s := v.t.Images[name].Spec
		given := map[string]bool{"kernel": s.Kernel != "", "initrds": len(s.Initrds) > 0, "cmdline": len(s.Cmdline) > 0}
		switch s.Type {
		case ImageKernel, ImageHypervisor, ImageCapture:
			if s.Kernel == "" {
				v.fail(KindImage, name, "spec", fmt.Sprintf("an image of type %s needs kernel", s.Type), "kernel: sha256:…")
			}
			if s.File != "" {
				v.fail(KindImage, name, "spec.file", fmt.Sprintf("an image of type %s has kernel and initrds instead", s.Type), "remove file")
			}
		case ImageSAN:
			given["file"] = s.File != ""
			v.without(name, given, "an image of type san has no files: it boots what is on the volume")
		case ImageDisk, ImageISO, ImageEFI:
			if s.File == "" {
				v.fail(KindImage, name, "spec", fmt.Sprintf("an image of type %s needs file", s.Type), "file: sha256:…")
			}
			v.without(name, given, fmt.Sprintf("an image of type %s is one file and takes no parameters", s.Type))
			if s.Type == ImageEFI && (len(s.Firmware) != 1 || s.Firmware[0] != UEFI) {
				v.fail(KindImage, name, "spec.firmware", "only UEFI starts an EFI binary", "firmware: [uefi]")
			}
		}
	}
}

// without refuses the fields that are given.
func (v *validator) without(image string, given map[string]bool, why string) {
	for field, is := range given {
		if is {
			v.fail(KindImage, image, "spec."+field, why, "remove "+field)
		}
	}
}

// workloads checks each workload against what it names.
func (v *validator) workloads() {
	scopes := map[string]string{} // spread group -> first member
	for _, name := range v.order[KindWorkload] {
		w := v.t.Workloads[name].Spec
		fail := func(path, problem, hint string) { v.fail(KindWorkload, name, path, problem, hint) }
		for i, a := range w.Networks {
			v.member(KindWorkload, name, fmt.Sprintf("spec.networks[%d].address", i), a)
		}
		v.image(name, w)
		if w.Health.Path != "" && w.Health.HTTPPort == 0 {
			fail("spec.health.path", "there is no httpPort to ask for it", "add httpPort")
		}
		if w.SpreadScope != "" && w.SpreadGroup == "" {
			fail("spec.spreadScope", "there is no spreadGroup to spread", "add spreadGroup")
		}
		if w.SpreadGroup == "" {
			continue
		}
		if first, ok := scopes[w.SpreadGroup]; !ok {
			scopes[w.SpreadGroup] = name
		} else if other := v.t.Workloads[first].Spec; scopeOf(other) != scopeOf(w) {
			fail("spec.spreadGroup", fmt.Sprintf("group %s is spread over each %s here and over each %s by %s", w.SpreadGroup, scopeOf(w), scopeOf(other), first),
				"give all members one spreadScope")
		}
	}
}

func scopeOf(w WorkloadSpec) string {
	if w.SpreadScope == "" {
		return "rack"
	}
	return w.SpreadScope
}

// image checks that the workload can boot its image.
func (v *validator) image(name string, w WorkloadSpec) {
	fail := func(path, problem, hint string) { v.fail(KindWorkload, name, path, problem, hint) }
	boots := 0
	for i, u := range w.Volumes {
		if u.Boot {
			if boots++; boots == 2 {
				fail(fmt.Sprintf("spec.volumes[%d].boot", i), "it boots from two volumes", "set boot on one")
			}
		}
	}
	img, ok := v.t.Images[w.Image]
	if !ok {
		return
	}
	if img.Spec.Arch != "" && img.Spec.Arch != w.Arch {
		fail("spec.image", fmt.Sprintf("image %s is for %s, the workload is %s", w.Image, img.Spec.Arch, w.Arch), "choose an image for "+string(w.Arch))
	}
	if len(img.Spec.Firmware) > 0 && w.Firmware != "" && !slices.Contains(img.Spec.Firmware, w.Firmware) {
		fail("spec.firmware", fmt.Sprintf("image %s boots by %s, not by %s", w.Image, joined(img.Spec.Firmware), w.Firmware), "")
	}
	switch {
	case img.Spec.Type == ImageHypervisor:
		fail("spec.image", "image "+w.Image+" is a hypervisor: it makes a machine a Host", "choose an image of type kernel or san")
	case img.Spec.Type == ImageCapture:
		fail("spec.image", "image "+w.Image+" copies a machine's disk and runs nothing", "choose an image of type kernel or san")
	case img.Spec.Type == ImageSAN && boots == 0:
		fail("spec.volumes", "image "+w.Image+" boots from a volume and none has boot: true", "set boot: true on one volume")
	case img.Spec.Type == ImageSAN && w.InitiatorIQN == "" && v.bootsOverISCSI(w):
		fail("spec", "booting from an iSCSI volume needs initiatorIQN", "e.g. initiatorIQN: iqn.2026-01.org.example:host-"+name)
	}
}

func (v *validator) bootsOverISCSI(w WorkloadSpec) bool {
	return slices.ContainsFunc(w.Volumes, func(u VolumeUse) bool { return u.Boot && v.t.Volumes[u.Volume].Spec.Protocol == ISCSI })
}

// dependencies reports each cycle of dependsOn once, with all its members.
func (v *validator) dependencies() {
	const (
		unseen = iota
		open
		done
	)
	state := map[string]int{}
	var trail []string
	// frame is a workload with its dependencies still to visit: a chain of thousands must not recurse.
	type frame struct {
		name string
		next int
	}
	for _, start := range v.order[KindWorkload] {
		if state[start] != unseen {
			continue
		}
		stack := []frame{{name: start}}
		state[start], trail = open, []string{start}
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			deps := v.t.Workloads[top.name].Spec.DependsOn
			if top.next == len(deps) {
				state[top.name] = done
				stack, trail = stack[:len(stack)-1], trail[:len(trail)-1]
				continue
			}
			i := top.next
			top.next++
			switch dep := deps[i]; state[dep] {
			case unseen:
				if _, ok := v.t.Workloads[dep]; ok {
					state[dep] = open
					stack, trail = append(stack, frame{name: dep}), append(trail, dep)
				}
			case open:
				cycle := append(slices.Clone(trail[slices.Index(trail, dep):]), dep)
				v.fail(KindWorkload, top.name, "spec.dependsOn["+strconv.Itoa(i)+"]", "the workloads wait for each other: "+strings.Join(cycle, " -> "), "remove one of these dependencies")
			}
		}
	}
}

// runbooks checks scopes, triggers and the hypervisor image.
func (v *validator) runbooks() {
	for _, name := range v.order[KindRunbook] {
		r := v.t.Runbooks[name].Spec
		for i, s := range r.Scope {
			at := fmt.Sprintf("spec.scope[%d]", i)
			if problem, hint := v.t.domainProblem(s); problem != "" {
				v.fail(KindRunbook, name, at, problem, hint)
			}
			if slices.Index(r.Scope, s) < i {
				v.fail(KindRunbook, name, at, s+" is given twice", "remove one")
			}
		}
		if r.Triggers == (Triggers{}) {
			v.fail(KindRunbook, name, "spec.triggers", "nobody may start it", "set one of person, api, alert, detector to true")
		}
		if img, ok := v.t.Images[r.HypervisorImage]; ok && img.Spec.Type != ImageHypervisor && img.Spec.Type != "" {
			v.fail(KindRunbook, name, "spec.hypervisorImage", fmt.Sprintf("image %s is of type %s", r.HypervisorImage, img.Spec.Type), "choose an image of type hypervisor")
		}
	}
}

// policies checks that the times of a policy, defaults included, can work together.
func (v *validator) policies() {
	for _, name := range v.order[KindPolicy] {
		e := EffectivePolicy(v.t, name).Evidence
		if e.MaxAge < e.PollEvery {
			v.fail(KindPolicy, name, "spec.evidence.maxAge", fmt.Sprintf("evidence is too old after %v and read every %v", time.Duration(e.MaxAge), time.Duration(e.PollEvery)),
				"maxAge must be longer than pollEvery")
		}
		if e.SuspectDeadline < e.HoldFor {
			v.fail(KindPolicy, name, "spec.evidence.suspectDeadline", fmt.Sprintf("a run gives up after %v and evidence must hold %v", time.Duration(e.SuspectDeadline), time.Duration(e.HoldFor)),
				"suspectDeadline must be longer than holdFor")
		}
	}
}

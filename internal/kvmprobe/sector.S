# A boot sector that goes the way of a kernel: real mode, protected mode, paging, long mode. There it says
# "kvm ok" on the first serial port and stops. In real mode it would prove too little: that is emulated,
# and runs also where a kernel then hangs. Built with
#   as -o sector.o sector.S && ld -m elf_x86_64 -Ttext 0x7c00 --oformat binary -o sector.bin sector.o
.set tables, 0x1000		# level 4; level 3 and 2 follow, a page each
.code16
.globl _start
_start:
	cli
	cld
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw $0x7c00, %sp
	inb $0x92, %al		# address line 20
	orb $2, %al
	andb $0xfe, %al
	outb %al, $0x92
	lgdt gdtr
	movl %cr0, %eax
	orl $1, %eax
	movl %eax, %cr0
	ljmp $8, $protected

.code32
protected:
	movw $16, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movl $tables, %edi
	movl %edi, %cr3
	xorl %eax, %eax
	movl $(3 * 1024), %ecx
	rep stosl
	movl $(tables + 0x1003), tables
	movl $(tables + 0x2003), tables + 0x1000
	movl $0x83, tables + 0x2000	# the first 2 MiB as they are
	movl %cr4, %eax
	orl $0x20, %eax		# physical address extension
	movl %eax, %cr4
	movl $0xc0000080, %ecx	# EFER
	rdmsr
	orl $0x100, %eax	# long mode
	wrmsr
	movl %cr0, %eax
	orl $0x80000000, %eax	# paging
	movl %eax, %cr0
	ljmp $24, $long

.code64
long:
	movl $said, %esi
next:	lodsb
	testb %al, %al
	jz stop
	movb %al, %ah
	movw $0x3fd, %dx	# line status of COM1
wait:	inb %dx, %al
	testb $0x20, %al	# room for a byte
	jz wait
	movb %ah, %al
	movw $0x3f8, %dx
	outb %al, %dx
	jmp next
stop:	hlt
	jmp stop

said:	.asciz "kvm ok\r\n"
.balign 8
gdt:	.quad 0
	.quad 0x00cf9a000000ffff	# code, 32 bits
	.quad 0x00cf92000000ffff	# data
	.quad 0x00af9a000000ffff	# code, 64 bits
gdtr:	.word gdtr - gdt - 1
	.long gdt
.org 510
	.word 0xaa55
